"""The command line of jaxsim-soc: one front door to all tools, and what they share."""
