"""What benchmarks/data_trust.py runs through Flower; `simulation.py` puts `workers` on the path."""

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from workers import client_app, start

client = client_app()
server = ServerApp()


@server.main()
def main(grid: Grid, context: Context) -> None:
    """All rounds."""
    start(grid, context)
