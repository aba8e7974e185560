"""`jaxsim-soc learning-speed` by the name of a file."""

from jaxsim_soc.commands import run

if __name__ == "__main__":
    run("learning-speed")
