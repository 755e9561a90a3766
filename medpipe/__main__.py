"""``python -m medpipe`` is the `medpipe` command."""

from medpipe.cli.main import main

if __name__ == "__main__":
    main()
