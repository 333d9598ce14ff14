"""`python -m ich` runs `ich`."""

from ich.cli import main

if __name__ == "__main__":
    main()
