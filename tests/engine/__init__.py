"""The engine: controls, the controlled UNet, schedules, plans and the loop."""
