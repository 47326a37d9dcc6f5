#!/bin/sh
# Print a Python >= 3.11 that can make virtual environments; the first argument, if any, is tried
# alone. Exit 1 with what to do when there is none.
ok() { "$1" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

for candidate in ${1:-python3 python3.14 python3.13 python3.12 python3.11 python}; do
    if command -v "$candidate" >/dev/null 2>&1 && ok "$candidate"; then
        command -v "$candidate"
        exit 0
    fi
done
echo "Gossamer needs Python 3.11 or newer with its venv module (on Debian and Ubuntu: the package" >&2
echo "python3-venv). Tried: ${1:-python3, python3.11 to python3.14, python}. Name another one with" >&2
echo "make PYTHON=/path/to/python3 ..." >&2
exit 1
