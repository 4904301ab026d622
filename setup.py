"""Only the C extension; everything else about the package is in setup.cfg, which can't declare extensions.

Environment:
    POOL_WERROR=1                     warnings of the C compiler are errors
    POOL_SANITIZE=address,undefined   build with these sanitizers
    POOL_DEBUG=1                      no optimisation, debug symbols, assertions
"""

import os
from glob import glob

from setuptools import Extension, setup

compile_args = ["-std=c11", "-O2", "-fvisibility=hidden", "-Wall", "-Wextra"]
link_args = []
if os.environ.get("POOL_WERROR") == "1":
    compile_args += ["-Werror"]
if os.environ.get("POOL_DEBUG") == "1":
    compile_args += ["-O0", "-g", "-UNDEBUG"]  # Python's own flags, which come first, define NDEBUG
if sanitizers := os.environ.get("POOL_SANITIZE"):
    compile_args += [f"-fsanitize={sanitizers}", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer", "-g"]
    link_args += [f"-fsanitize={sanitizers}"]

setup(
    ext_modules=[
        Extension(
            "ipc._core",
            sources=[*sorted(glob("ipc/*.c")), *sorted(glob("ipc/core/*.c"))],
            depends=[*sorted(glob("ipc/*.h")), *sorted(glob("ipc/core/*.h"))],
            define_macros=[("Py_LIMITED_API", "0x030b0000")],  # 3.11 brought the buffer protocol into the limited API
            py_limited_api=True,
            extra_compile_args=compile_args,
            extra_link_args=link_args,
        )
    ]
)
