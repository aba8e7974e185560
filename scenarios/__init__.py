"""Enterprise attack campaigns as data: four built-in ones, a hardened variant of each, and any you write.

    >>> import scenarios
    >>> scenarios.names()[0]
    'supply_chain_token_drift'
    >>> scenarios.load("insider_repo_pivot").horizon
    80
    >>> scenarios.names("hardened")[0]
    'supply_chain_token_drift_hardened'

`load` also takes the path of a YAML or JSON file, and either with a queue behind it: the files' rates are those of a
triaged queue, and "insider_repo_pivot@raw" is the same network before triage. The smallest file looks like this:

    format: 1
    id: one-step
    title: Data leaves in one step
    horizon: 30              # ticks
    noise_rate: 0.1          # chance of a background alert each tick
    assets:
      - {id: proxy, kind: service, criticality: 0.4, segment: edge}
    stages:
      - id: exfil
        name: Copy the data out
        tactic: TA0010       # Exfiltration
        technique: T1041     # Exfiltration Over C2 Channel
        asset: proxy
        dwell: [2, 5]        # ticks, lowest and highest
        success: 0.9         # chance
        detection: 0.7       # strength of its alerts, 0 to 1
        lag: [0, 2]          # ticks until its alerts are seen, lowest and highest
        exfil: true          # success ends the episode

`python -m scenarios new ID` begins such a file, `validate FILE` checks one, `check FILE` also says what is odd
in it, and `draw FILE` makes a picture of it; `schema` prints the JSON schema, which describes every field. A tick is
30 minutes. `python -m scenarios import FILE` makes a scenario of an Attack Flow.
"""

from scenarios.load import GROUPS, ScenarioError, digest, dump, in_queue, load, loads, names, renamed
from scenarios.model import SIGNALS, Asset, Benign, Identity, Queue, Scenario, Stage

__all__ = [
    "GROUPS",
    "SIGNALS",
    "Asset",
    "Benign",
    "Identity",
    "Queue",
    "Scenario",
    "ScenarioError",
    "Stage",
    "digest",
    "dump",
    "in_queue",
    "load",
    "loads",
    "names",
    "renamed",
]
