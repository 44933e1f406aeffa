"""What a job makes the device do: models, precision, quantisation, optimizer, passes."""
