// What these test programs, C++ and C, need of a framework: a check that says where it failed, and an exit status.
#pragma once

#include <stdio.h>

#ifdef __cplusplus
inline int failures = 0;
#else
static int failures = 0;
#endif

#define EXPECT(condition)                                                   \
    do {                                                                    \
        if (!(condition)) {                                                 \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition); \
            ++failures;                                                     \
        }                                                                   \
    } while (0)
