"""``python -m adp_async``: the command line, where `adp-async` is not on the path."""

from adp_async.cli import main

if __name__ == "__main__":
    main()
