"""The wire: the workspace's verbs over HTTP, for `ms.connect(url)`, for the console's page and for other languages."""
