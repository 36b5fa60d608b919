"""1x1 convolutions of few channels to sum over: weights stay, pixels stream by (sm_90)."""
