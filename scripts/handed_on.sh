# shellcheck shell=bash
# shellcheck disable=SC2034  # used by the scripts that source this one
# Names of the variables that every way of starting a run hands on to it, where they are set. Values are never printed.
HANDED_ON=(
  HF_TOKEN HF_HOME WANDB_API_KEY
  HF_ENDPOINT
  WANDB_BASE_URL WANDB_ENTITY WANDB_PROJECT WANDB_MODE
  MLFLOW_TRACKING_URI MLFLOW_TRACKING_USERNAME MLFLOW_TRACKING_PASSWORD MLFLOW_TRACKING_TOKEN MLFLOW_EXPERIMENT_NAME
  TRACKIO_PROJECT TRACKIO_SPACE_ID
  SSPO_API_KEY
)
