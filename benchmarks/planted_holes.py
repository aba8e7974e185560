"""`jaxsim-soc planted-holes` by the name of a file."""

from jaxsim_soc.commands import run

if __name__ == "__main__":
    run("planted-holes")
