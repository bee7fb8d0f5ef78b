"""`python -m pipelines` is the same as `aweigh`."""

from pipelines.cli import main

if __name__ == "__main__":
    main()
