export const listing = { Body: () => null, readout: () => "", draw: () => ({ width: 1, height: 1 }) };
