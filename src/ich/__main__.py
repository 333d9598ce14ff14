"""`python -m ich` is `ich`, for those who begin it by a module's name, as `accelerate launch --module` does."""

from ich.cli import main

if __name__ == "__main__":
    main()
