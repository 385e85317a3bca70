# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that Orbax wrote, read without Orbax, and ours written for it: through tensorstore, and JSON files.

```
from milepost.interop import orbax

steps = orbax.open("runs/old")
steps[1000].tree("state")["params"]["w"][:8]  # reads these rows alone
orbax.import_checkpoints("runs/old", "runs/new")
orbax.export_checkpoint(mp.open("runs/new")[1000], "runs/back")
```
"""

from milepost.interop.orbax.directory import OrbaxDirectory, OrbaxStep
from milepost.interop.orbax.directory import open_directory as open  # noqa: A004 always written `orbax.open`
from milepost.interop.orbax.export import Exported, export_checkpoint
from milepost.interop.orbax.importing import Imported, import_checkpoints

__all__ = [
    "Exported", "Imported", "OrbaxDirectory", "OrbaxStep", "export_checkpoint", "import_checkpoints", "open",
]  # fmt: skip
