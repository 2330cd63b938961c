1 models
