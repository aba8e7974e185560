"""The OpenEnv server: `uvicorn serving.openenv.server.app:app --port 8000`. It answers once it has compiled."""

from openenv.core.env_server.http_server import create_app
from openenv.core.env_server.types import ConcurrencyConfig, State

from serving.openenv.environment import SocEnvironment, warm
from serving.openenv.models import SocAction, SocObservation
from serving.sessions import Limits

LIMITS = Limits()

warm()
app = create_app(
    SocEnvironment,
    SocAction,
    SocObservation,
    env_name="jaxsim-soc",
    # Without a timeout the place of a client that vanished is never free again.
    concurrency_config=ConcurrencyConfig(max_concurrent_envs=LIMITS.sessions, session_timeout=LIMITS.idle),
    state_cls=State,
)


def main() -> None:
    """Serve on all addresses of a container."""
    import uvicorn

    uvicorn.run(app, host="0.0.0.0", port=8000)


if __name__ == "__main__":
    main()
