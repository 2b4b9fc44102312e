"""Artifact types that the user interfaces of pipelines know by name, and show.

TFX's containers import a type by the name that the compiled pipeline gives it. The one that Vertex AI and
Kubeflow show as a page is called `system.HTML`, and so this module has its name.
"""

from tfx.types.artifact import Artifact


class HTML(Artifact):
    """A page. Its URI is the file itself where a platform shows it; on this machine a folder that holds it."""

    TYPE_NAME = "system.HTML"
