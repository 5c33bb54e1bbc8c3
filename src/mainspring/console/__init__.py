"""The face: pages over the workspace, served beside the API; it has no logic the command line lacks."""
