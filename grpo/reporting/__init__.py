"""What was played, for people: rows of numbers, tables, pictures, an episode as a web page.

Reads results and asks no model. Imports the simulator and `prompting`, neither torch nor another room.
"""
