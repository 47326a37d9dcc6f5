"""`python -m gossamer`: the command line. Layer 8."""

from gossamer.cli import main

if __name__ == "__main__":
    main()
