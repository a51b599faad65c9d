"""`python -m stepvar.cli` is the `stepvar` program."""

from stepvar.cli import main

if __name__ == "__main__":
    main()
