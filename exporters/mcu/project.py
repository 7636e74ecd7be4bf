"""Files around the generated C: a Makefile, CMake, an Arduino/PlatformIO library and an example."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from csr_deploy import __version__

_FLAGS = "-std=c99 -O2 -Wall -Wextra -Wconversion -Werror -ffunction-sections -fdata-sections"


def makefile(sources: Sequence[str], name: str) -> str:
    """Makefile: a static library for any gcc, and the example on this machine."""
    return f"""# {name}: `make` builds the example for this machine,
# `make lib CROSS=arm-none-eabi- CPU=-mcpu=cortex-m4` a static library for a microcontroller.
CROSS ?=
CPU ?=
CC := $(CROSS)gcc
AR := $(CROSS)ar
CFLAGS ?= {_FLAGS}
SOURCES := {" ".join(f"src/{s}" for s in sources)}
OBJECTS := $(SOURCES:src/%.c=build/%.o)

.PHONY: example lib clean
example: build/example
lib: build/libmodel.a

build/%.o: src/%.c $(wildcard src/*.h)
\t@mkdir -p build
\t$(CC) $(CPU) $(CFLAGS) -Isrc -c $< -o $@

build/libmodel.a: $(OBJECTS)
\trm -f $@
\t$(AR) rcs $@ $^

build/example: examples/classify/main.c build/libmodel.a
\t$(CC) $(CPU) $(CFLAGS) -Isrc $^ -o $@

clean:
\trm -rf build
"""


def cmake(sources: Sequence[str], target: str) -> str:
    """CMakeLists.txt: a library that other projects add with add_subdirectory."""
    listed = "\n".join(f"  src/{s}" for s in sources)
    return f"""cmake_minimum_required(VERSION 3.13)
project({target} C)
add_library({target} STATIC
{listed})
set_target_properties({target} PROPERTIES C_STANDARD 99)
target_include_directories({target} PUBLIC src)

if(CMAKE_CURRENT_SOURCE_DIR STREQUAL CMAKE_SOURCE_DIR AND NOT CMAKE_CROSSCOMPILING)
  add_executable({target}_example examples/classify/main.c)
  target_link_libraries({target}_example PRIVATE {target})
endif()
"""


def _version() -> str:
    """The numbers of the package's version, as Arduino wants them."""
    return ".".join((re.findall(r"[0-9]+", __version__) + ["0", "0"])[:3])


def library_properties(target: str, name: str) -> str:
    """library.properties of the Arduino library format 1.5, which PlatformIO reads too."""
    plain = re.sub(r"[^\x20-\x7e]", "?", name)
    return f"""name={target}
version={_version()}
author=csr-deploy
maintainer=csr-deploy
sentence={plain} as C for microcontrollers.
paragraph=One init and one run function, no allocation, constants in flash.
category=Data Processing
url=
architectures=*
includes=model.h
"""


def example(prefix: str, values: Mapping[str, str]) -> str:
    """examples/classify/main.c: reads inputs from standard input, prints the class of each."""
    m = prefix.upper()
    in_type, out_type = values["input"], values["output"]
    return f"""/* Reads one input after the other from standard input, as {prefix}_input takes them,
 * and prints the class with the largest output. */
#include "{prefix}.h"

#include <stdio.h>
#include <stdlib.h>

int main(void)
{{
    static {prefix}_t model;
    /* Aligned by hand, as C99 has no word for it. */
    static unsigned char memory[{m}_ARENA_BYTES + {m}_ARENA_ALIGNMENT];
    unsigned char *const arena =
        memory + ({m}_ARENA_ALIGNMENT - (uintptr_t)memory % {m}_ARENA_ALIGNMENT) % {m}_ARENA_ALIGNMENT;
    if ({prefix}_init(&model, arena, {m}_ARENA_BYTES) != {m}_OK) {{
        return EXIT_FAILURE;
    }}
    for (;;) {{
        {in_type} *const input = {prefix}_input(&model);
        const {out_type} *const output = {prefix}_output(&model);
        size_t best = 0, i;
        if (fread(input, 1, {m}_INPUT_BYTES, stdin) != {m}_INPUT_BYTES) {{
            return EXIT_SUCCESS;
        }}
        if ({prefix}_run(&model) != {m}_OK) {{
            return EXIT_FAILURE;
        }}
        for (i = 1; i < {m}_OUTPUT_BYTES / sizeof *output; i++) {{
            if (output[i] > output[best]) {{
                best = i;
            }}
        }}
#if {m}_LABELS > 0
        puts({prefix}_labels[best]);
#else
        printf("%u\\n", (unsigned)best);
#endif
    }}
}}
"""
