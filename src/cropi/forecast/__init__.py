"""What a run will cost, before it: tokens, FLOPs, seconds, memory and disk of every phase.

`plan_run` is the whole of it; `forecast` is the arithmetic alone, for models and pools that exist
only as numbers.
"""

from cropi.forecast.run_forecast import ArmForecast, Forecast, PhaseForecast, forecast, plan_run

__all__ = ["ArmForecast", "Forecast", "PhaseForecast", "forecast", "plan_run"]
