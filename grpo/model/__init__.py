"""The model at hand: found, checked and loaded, made to answer in tokens, in the grammar of the legal answers.

Knows prompts as texts, and nothing of episodes or training. Imports `prompting`; no other room.
"""
