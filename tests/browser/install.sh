#!/usr/bin/env bash
# Sees to it that there is a Chromium: the system's, else Debian's package, else the one that playwright fetches.
# Usage: install.sh PYTHON
set -u
cd "$(dirname "$0")/../.."
found() { "$1" tests/browser_page.py; }
found "$1" && exit 0
if command -v apt-get > /dev/null && [ "$(id -u)" = 0 ]; then
    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium > /dev/null
    found "$1" && exit 0
fi
timeout 120 "$1" -m playwright install --only-shell chromium
found "$1" && exit 0
echo "No browser can be installed here, neither Debian's chromium nor playwright's: the page is not tested in one." >&2
exit 1
