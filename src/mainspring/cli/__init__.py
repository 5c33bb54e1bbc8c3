"""The hands: one file per verb, each a thin call into the workspace and a way to draw what comes back."""

from mainspring.cli.app import main as main
