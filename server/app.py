"""The Flower ServerApp: settings in, a run directory out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flwr.serverapp import ServerApp

if TYPE_CHECKING:
    from flwr.app import Context
    from flwr.serverapp import Grid

    from common.settings.schema import RunConfig


def make_app(config: RunConfig | None = None) -> ServerApp:
    """Build the ServerApp; without ``config`` it takes the settings of Flower's run configuration."""
    server_app = ServerApp()

    @server_app.main()
    def main(grid: Grid, context: Context) -> None:
        # Flower loads this module only to look for the app; torch is wanted once a run begins
        from server.loop.run import run
        from server.tasks.base import load_settings

        run(grid, config if config is not None else load_settings(dict(context.run_config)))

    return server_app


app = make_app()
