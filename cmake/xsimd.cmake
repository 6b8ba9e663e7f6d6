# Finds xsimd 14.1 or newer and sets RADAM_XSIMD_INCLUDE_DIR: as given, as a CMake package, inside the PyPI package
# pythran (a build requirement of the wheel), or fetched.

function(radam_xsimd_version dir out)
  set(version "")
  if(EXISTS "${dir}/xsimd/config/xsimd_config.hpp")
    file(STRINGS "${dir}/xsimd/config/xsimd_config.hpp" lines REGEX "#define XSIMD_VERSION_(MAJOR|MINOR|PATCH) +[0-9]+")
    string(REGEX REPLACE "[^0-9;]*([0-9]+)" "\\1" lines "${lines}")
    string(REPLACE ";" "." version "${lines}")
  endif()
  set(${out} "${version}" PARENT_SCOPE)
endfunction()

function(radam_find_xsimd)
  if(RADAM_XSIMD_INCLUDE_DIR)
    set(candidates "${RADAM_XSIMD_INCLUDE_DIR}")
  else()
    set(candidates "")
    find_package(xsimd QUIET CONFIG)  # any version: Debian's is too old and is passed over below
    if(xsimd_FOUND)
      get_target_property(dirs xsimd INTERFACE_INCLUDE_DIRECTORIES)
      list(APPEND candidates ${dirs})
    endif()
    find_package(Python3 QUIET COMPONENTS Interpreter)
    foreach(python "${Python_EXECUTABLE}" "${Python3_EXECUTABLE}")
      if(python)
        execute_process(
          COMMAND "${python}" -c "import importlib.util as u; s = u.find_spec('pythran'); print(s.submodule_search_locations[0] if s else '')"
          OUTPUT_VARIABLE pythran OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
        list(APPEND candidates ${pythran})
      endif()
    endforeach()
  endif()

  set(seen "")
  foreach(dir IN LISTS candidates)
    file(TO_CMAKE_PATH "${dir}" dir)
    radam_xsimd_version("${dir}" version)
    if(version AND NOT version VERSION_LESS 14.1)
      message(STATUS "radam: xsimd ${version} in ${dir}")
      set(RADAM_XSIMD_INCLUDE_DIR "${dir}" CACHE PATH "" FORCE)
      return()
    endif()
    string(APPEND seen "\n  ${dir}: ${version}")
  endforeach()
  if(RADAM_XSIMD_INCLUDE_DIR)
    message(FATAL_ERROR "RADAM_XSIMD_INCLUDE_DIR holds no xsimd 14.1 or newer:${seen}")
  endif()

  include(FetchContent)
  FetchContent_Declare(xsimd_source
    URL https://github.com/xtensor-stack/xsimd/archive/refs/tags/14.1.0.tar.gz
    URL_HASH SHA256=8da77b66214e73565f6111ba494322c853552b7b40cff69779b42e2100eed16f
    SOURCE_SUBDIR headers-only)  # no such folder: its own targets are not wanted
  FetchContent_MakeAvailable(xsimd_source)
  set(RADAM_XSIMD_INCLUDE_DIR "${xsimd_source_SOURCE_DIR}/include" CACHE PATH "" FORCE)
endfunction()

if(RADAM_XSIMD)
  radam_find_xsimd()
endif()
