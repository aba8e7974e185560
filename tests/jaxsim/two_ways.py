"""A small scenario with two ways to one store."""

import scenarios
from jaxsim.types import (
    Dims,
)

DIMS = Dims(assets=4, identities=3, stages=5, max_lag=4)

TWO_WAYS = scenarios.loads("""
format: 1
id: two-ways
title: Two ways to one store
horizon: 20
noise_rate: 0.3
assets:
  - {id: web-server, kind: service, criticality: 0.5, segment: edge}
  - {id: store, kind: datastore, criticality: 1.0, segment: data}
  - {id: lamp, kind: host, criticality: 0.2, segment: lobby}
identities:
  - {id: ann, role: clerk, privilege: 0.4}
stages:
  - {id: web, name: w, tactic: TA0001, technique: T1190, asset: web-server, dwell: [2, 3], success: 0.8,
     detection: 0.4, lag: [0, 4], compromises_asset: true}
  - {id: mail, name: m, tactic: TA0001, technique: T1566.002, identity: ann, dwell: [1, 4], success: 0.8,
     detection: 0.8, lag: [1, 2], compromises_identity: true}
  - {id: out, name: o, tactic: TA0010, technique: T1041, any_prerequisites: [web, mail], asset: store,
     dwell: [2, 9], success: 0.6, detection: 0.7, lag: [0, 1], exfil: true}
""")
