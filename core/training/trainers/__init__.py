"""One trainer for each stage: how TRL's classes are configured and extended."""
