"""The game for agents and trainers that are not ours: over HTTP and WebSocket (`jaxsim-soc serve`), as tools of a
language model, as an OpenEnv environment. Above all but `jaxsim_soc_v1` in the order of imports, and apart from
`prompting`, which must never see a `State`.
"""
