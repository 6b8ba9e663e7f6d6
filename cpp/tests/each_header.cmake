# Compiles each header by itself: cmake -DCOMPILER=... -DFLAGS=... -DHEADERS=... -P each_header.cmake
set(bad "")
foreach(header IN LISTS HEADERS)
  execute_process(COMMAND ${COMPILER} ${FLAGS} -fsyntax-only -include ${header} -x c++ /dev/null
                  RESULT_VARIABLE status ERROR_VARIABLE said)
  if(NOT status EQUAL 0)
    message("${header}:\n${said}")
    list(APPEND bad ${header})
  endif()
endforeach()
if(bad OR NOT HEADERS)
  message(FATAL_ERROR "with ${FLAGS} these do not compile by themselves: ${bad}")
endif()
