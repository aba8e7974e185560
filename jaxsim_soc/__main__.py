"""`python -m jaxsim_soc`: the front door without its script."""

from jaxsim_soc.commands import main

if __name__ == "__main__":
    main()
