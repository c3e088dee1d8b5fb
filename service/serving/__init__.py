"""The line's side: deployments, the queue before the device, engines, shadows and kept frames."""
