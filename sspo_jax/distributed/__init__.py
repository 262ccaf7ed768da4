"""Several processes that train together: how they start, agree, are watched, interrupted and restarted."""
