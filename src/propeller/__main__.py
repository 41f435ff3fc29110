"""``python -m propeller``."""

from propeller.cli import main

if __name__ == "__main__":
    main()
