/* The phases in which Kong calls a plugin, with their numbers in kongps.
 *
 * The numbers are part of the interface between the server and native plugins: a phase never
 * changes its number, and new phases are added before KONGPS_PHASES.
 */
#ifndef KONGPS_PHASES_H
#define KONGPS_PHASES_H

enum kongps_phase {
    KONGPS_NO_PHASE = -1,
    KONGPS_CERTIFICATE = 0,
    KONGPS_REWRITE = 1,
    KONGPS_ACCESS = 2,
    KONGPS_RESPONSE = 3,
    KONGPS_PREREAD = 4,
    KONGPS_LOG = 5,
    KONGPS_PHASES /* how many there are */
};

#endif /* KONGPS_PHASES_H */
