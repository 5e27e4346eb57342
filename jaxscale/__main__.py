"""`python -m jaxscale` is `jaxscale`."""

from jaxscale.cli import main

if __name__ == "__main__":
    main()
