"""The game over HTTP and WebSocket, for agents of any language: `jaxsim-soc serve`. Above everything else in the order
of imports, and apart from `prompting`, which must never see a `State`.
"""
