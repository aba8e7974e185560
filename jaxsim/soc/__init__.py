"""Episodes as the tools of a SOC read them: OCSF events, STIX with Attack Flow, layers of the ATT&CK Navigator.

`episodes` makes plain data of what was played, `ocsf`, `stix` and `navigator` are pure functions of it, `export` writes
files. What a defender sees, `episodes.Alert` and `episodes.Deed`, is apart from what is true; alerts and remediation
actions are made of the former alone.
"""
