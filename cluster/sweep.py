"""What `ray submit FILE cluster/sweep.py -- OPTIONS` runs on the head: `dsn_ray.tune OPTIONS`.

Whichever `python` there is there starts it; the sweep runs with that of `local.yaml`, if any.
"""

import os
import sys
from pathlib import Path

home = Path.home()
python = home / "dsn_ray_env" / "bin" / "python"
os.chdir(home)
os.environ.setdefault("RAY_AUTH_MODE", "token")
chosen = str(python) if python.exists() else sys.executable
os.execv(chosen, [chosen, "-m", "dsn_ray.tune", *sys.argv[1:]])
