"""A language model at the desk: load it, let it play, measure it, train it by GRPO."""
