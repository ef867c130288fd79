"""``python -m samplerpool``: the same as the command ``samplerpool``."""

from samplerpool.cli.main import main

if __name__ == "__main__":
    main(prog_name="samplerpool")
