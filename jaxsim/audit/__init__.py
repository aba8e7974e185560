"""The audit: does a reward pay for reading the evidence?"""
