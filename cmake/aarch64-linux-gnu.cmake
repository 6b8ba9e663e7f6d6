# For a 64-bit ARM Linux, from another one: Debian's packages g++-aarch64-linux-gnu and qemu-user. What is built runs
# under emulation, so that ctest works:
#   cmake -S . -B build/aarch64 -DCMAKE_TOOLCHAIN_FILE=$PWD/cmake/aarch64-linux-gnu.cmake -DRADAM_TESTS=ON
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_C_COMPILER aarch64-linux-gnu-gcc)
set(CMAKE_CXX_COMPILER aarch64-linux-gnu-g++)
# Debian's name for the static one is another.
find_program(radam_qemu NAMES qemu-aarch64 qemu-aarch64-static)
if(radam_qemu)
  set(CMAKE_CROSSCOMPILING_EMULATOR ${radam_qemu} -L /usr/aarch64-linux-gnu)
endif()
# Programs are this machine's own, what they link is not.
set(CMAKE_FIND_ROOT_PATH /usr/aarch64-linux-gnu)
set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
set(CMAKE_FIND_ROOT_PATH_MODE_LIBRARY ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_INCLUDE ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_PACKAGE ONLY)
