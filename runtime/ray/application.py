"""What `serve run` and `serve deploy` start: a front, and as many servers as are wanted."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from ray import serve
from ray.serve import Application
from ray.serve.config import AutoscalingConfig

from runtime.arguments import from_table
from runtime.config import ConfigError, ServerConfig
from runtime.ray.front import Front
from runtime.ray.replica import Server

# What a server elsewhere may do, but not one that has no address of its own.
NOT_HERE = ("add_user", "redirect", "trace", "openai", "stack", "spill_folder", "spill_disk_gib")
HEALTH = {"health_check_period_s": 2.0, "health_check_timeout_s": 30.0}
CLOSE_S = 15.0  # that Ray leaves a replica beyond its drain


class Args(BaseModel):
    """Arguments of the application; all others are options of `python -m runtime.server`."""

    model_config = ConfigDict(extra="allow")

    min_replicas: int = Field(1, ge=1)
    max_replicas: int = Field(4, ge=1)
    most_waiting: int = Field(8, ge=1, description="requests in line for each replica")
    cpus: float = Field(1, ge=0, description="that Ray sets aside for a replica")
    gpus: float = Field(0, ge=0, description="the same, of GPUs")
    autoscaling: dict[str, Any] = Field({}, description="more of Ray's autoscaling_config")

    def server_config(self) -> ServerConfig:
        """The options of the servers. Raises ConfigError."""
        options = dict(self.model_extra or {})
        options.setdefault("threads", max(int(self.cpus), 1))
        for name in NOT_HERE:
            if options.get(name):
                raise ConfigError(f"{name} is for python -m runtime.server; leave it out with Ray")
        config = from_table(ServerConfig, options, "the arguments of runtime.ray")
        if unknown := self.autoscaling.keys() - AutoscalingConfig.model_fields:
            raise ConfigError(f"autoscaling has {min(unknown)!r}, which Ray's has not")
        if self.max_replicas < self.min_replicas:
            raise ConfigError(
                f"max_replicas is {self.max_replicas}, less than min_replicas, {self.min_replicas}"
            )
        return config


def app(args: Args) -> Application:
    """The application, for Ray. Raises ConfigError."""
    config = args.server_config()
    front = serve.deployment(
        Front,
        **HEALTH,
        ray_actor_options={"num_cpus": 0},
        # replicas call it twice a second
        logging_config={"enable_access_log": False},
    )
    server = serve.deployment(
        Server,
        **HEALTH,
        ray_actor_options={"num_cpus": args.cpus, "num_gpus": args.gpus},
        graceful_shutdown_timeout_s=config.drain_s + CLOSE_S,
        autoscaling_config={
            "min_replicas": args.min_replicas,
            "max_replicas": args.max_replicas,
            "policy": {"policy_function": "runtime.ray.scaling:policy"},
            **args.autoscaling,
        },
    )
    return server.bind(config, front.bind(config), args.most_waiting)
