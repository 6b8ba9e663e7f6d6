# Decides whether the CUDA library is built. Sets RADAM_CUDA_REASON, in words that a user reads: why it is not, or
# nothing where it is.

if(NOT DEFINED RADAM_CUDA)
  set(radam_cuda OFF)  # a project around this one asks for it, or does without
  if(radam_top_level AND RADAM_DISPATCH)
    set(radam_cuda AUTO)
  endif()
  set(RADAM_CUDA ${radam_cuda} CACHE STRING "Build the CUDA library: ON, OFF, or AUTO: where nvcc 13.0 or newer can")
  set_property(CACHE RADAM_CUDA PROPERTY STRINGS AUTO ON OFF)
endif()
if(NOT RADAM_CUDA MATCHES "^(AUTO|ON|OFF)$")
  message(FATAL_ERROR "radam: RADAM_CUDA is '${RADAM_CUDA}', and must be AUTO, ON or OFF")
endif()

# Sets why to what is wrong with the nvcc that CMake would take, or to nothing. Quicker than asking CMake, and clearer.
function(radam_look_for_nvcc why)
  if(CMAKE_CUDA_COMPILER)
    set(name "${CMAKE_CUDA_COMPILER}")
  elseif(NOT "$ENV{CUDACXX}" STREQUAL "")
    separate_arguments(name NATIVE_COMMAND "$ENV{CUDACXX}")
    list(GET name 0 name)
  else()
    set(name nvcc)
  endif()
  get_filename_component(shown "${name}" NAME)
  find_program(radam_nvcc "${name}" HINTS "$ENV{CUDA_PATH}/bin" NO_CMAKE_SYSTEM_PATH)
  set(nvcc "${radam_nvcc}")
  unset(radam_nvcc CACHE)  # look again next time
  set(${why} "" PARENT_SCOPE)
  if(NOT nvcc)
    set(${why} "no ${shown} was found when it was built" PARENT_SCOPE)
    return()
  endif()
  execute_process(COMMAND "${nvcc}" --version OUTPUT_VARIABLE output ERROR_QUIET)
  if(NOT output MATCHES "Cuda compilation tools, release ([0-9]+[.][0-9]+)")
    set(${why} "the ${shown} found when it was built is not NVIDIA's, or does not run" PARENT_SCOPE)
  elseif(CMAKE_MATCH_1 VERSION_LESS 13.0)
    set(${why} "nvcc ${CMAKE_MATCH_1} was found when it was built, and 13.0 is needed" PARENT_SCOPE)
  endif()
endfunction()

if(RADAM_CUDA STREQUAL "OFF")
  set(RADAM_CUDA_REASON "RADAM_CUDA=OFF")
else()
  radam_look_for_nvcc(RADAM_CUDA_REASON)
endif()

if(RADAM_CUDA STREQUAL "AUTO" AND NOT RADAM_CUDA_REASON)
  include(CheckLanguage)
  check_language(CUDA)  # the host's compiler, say, may be too new for this nvcc
  if(NOT CMAKE_CUDA_COMPILER)
    unset(CMAKE_CUDA_COMPILER CACHE)  # look again next time
    set(RADAM_CUDA_REASON "the nvcc found when it was built could not compile")
  endif()
endif()

if(NOT RADAM_CUDA_REASON)
  if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES AND "$ENV{CUDAARCHS}" STREQUAL "")
    # Native code for what is in use, and PTX, which newer drivers compile for what comes later.
    set(CMAKE_CUDA_ARCHITECTURES "75-real;80-real;86-real;89-real;90;100-real;120-real" CACHE STRING "CUDA architectures")
  endif()
  enable_language(CUDA)
  if(CMAKE_CUDA_FLAGS MATCHES "use_fast_math")  # of which nvcc tells the source nothing
    message(FATAL_ERROR "radam gives the same bits everywhere, which -use_fast_math would break: build it without")
  endif()
  message(STATUS "radam: CUDA by nvcc ${CMAKE_CUDA_COMPILER_VERSION}, for ${CMAKE_CUDA_ARCHITECTURES}")
elseif(RADAM_CUDA STREQUAL "ON")
  string(REPLACE " when it was built" "" radam_why "${RADAM_CUDA_REASON}")
  message(FATAL_ERROR "radam: RADAM_CUDA=ON, but ${radam_why}. Put nvcc of CUDA 13.0 or newer on PATH, or name it "
                      "in the environment variable CUDACXX; or build without CUDA: RADAM_CUDA=OFF.")
else()
  message(STATUS "radam: without CUDA: ${RADAM_CUDA_REASON}")
endif()
