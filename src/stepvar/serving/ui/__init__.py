"""The page of `stepvar ui`: prompt, plan, dense and accelerated side by side, on the server's queue."""
