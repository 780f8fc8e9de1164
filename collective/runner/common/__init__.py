"""As Horovod has it."""
